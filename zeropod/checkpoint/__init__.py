"""Scale-down and restore: engines over CRIU, image directories, what a failed attempt leaves."""
