"""Errors, configuration, files, run folders, records, trackers and units: what every other package stands on."""
