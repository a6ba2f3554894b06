"""Take out of a bundle's config.json what needs a cgroup controller. argv: that of `runc create`.

A program of its own, which imports nothing of the lab: it runs at every start of a container.
"""

import json
import sys
from pathlib import Path

_KEPT = ("devices",)  # BPF, not a controller, on cgroup2


def main(argv: list[str]) -> None:
    file = Path(argv[argv.index("--bundle") + 1]) / "config.json"
    config = json.loads(file.read_text())
    linux = config["linux"]
    resources = linux.get("resources") or {}
    linux["resources"] = {key: resources[key] for key in _KEPT if key in resources}
    file.write_text(json.dumps(config))


if __name__ == "__main__":
    main(sys.argv[1:])
