"""One container: its states, its processes, their stdio, and its sleep."""
