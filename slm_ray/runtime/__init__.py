"""Where a run happens: Ray, storage, run folder, console, hardware."""
