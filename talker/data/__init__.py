"""The dataset folder: file names, formats, import and export."""
