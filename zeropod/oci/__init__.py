"""The OCI runtime's command line, processes by pidfd, the bundle and its mounts."""
