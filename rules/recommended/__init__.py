"""The default rules, calibrated so that a healthy run is quiet."""
