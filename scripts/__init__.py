"""What is not a step: chains, data sets, demo, evaluation, report, export, tests."""
