"""The process: launcher protocol, zygote, socket and wiring of one pod's shim."""
