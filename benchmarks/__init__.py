"""What zeropod costs and what it saves, measured on the lab's node.

Every benchmark is a module with ``ABOUT``, ``ROUNDS`` and ``run(node, rounds)``, which returns a
`report.Report`. What is compared is measured in one run, in turn. Nothing is asserted on a time;
that an app came back with its memory is.
"""
