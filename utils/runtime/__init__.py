"""The machine and its processes: devices, threads, signals, progress, random draws."""
