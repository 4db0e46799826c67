"""What scripts take from below ``smdebug.core``: files and their names, small helpers, constants."""
