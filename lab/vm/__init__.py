"""The node in a virtual machine, for what the kernel of a development machine cannot do.

A Debian with systemd boots under software emulation, once with each kernel, with a node of its own:
cgroup2 with all controllers, the systemd cgroup driver, every capability, soft-dirty tracking.
``python -m lab.vm`` makes the machine, runs the checks (checks.py) and prints their table.
"""
