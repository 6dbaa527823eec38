"""What every other part builds on: files, options, configs, keys of results. It knows neither torch nor a model."""
