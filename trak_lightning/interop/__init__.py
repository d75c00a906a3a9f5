"""Other attribution libraries, one file each."""
