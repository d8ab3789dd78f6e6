"""What runs any command: configuration, files, processes. It knows no face."""
