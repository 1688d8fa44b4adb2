"""`counterpoint plan`: what a run needs and how long it takes, before anything is started.

In: a run file with overrides, and the devices that it is to train on. Out: a page of numbers with
what they assume, and the same as JSON. Needs no GPU, no data and no memory: towers run on device
`meta`.
"""

import json
import math

from ...data.files import write_whole
from ..arguments import plan as plan_options
from ..config import parser as run_config
from ..planning import page
from ..planning.advice import advice
from ..planning.devices import load_device, measure, write
from ..planning.estimate import Cluster, estimate, settle


def main(argv: list[str]) -> int:
    """Prints the plan, or measures the machine; returns the exit status."""
    options, rest = plan_options().parse_known_args(argv)
    if options.measure is not None:
        write(measure(), options.measure)
        print(f"wrote {options.measure}; use it with --on {options.measure}")
        return 0
    device = load_device(options.on)
    per_node = int(device.node["gpus"])
    nodes = options.nodes or math.ceil(options.gpus / per_node)
    cluster = Cluster(device, options.gpus, nodes)
    parser = run_config.make_parser()
    config = run_config.plain(parser, run_config.parse(parser, rest))
    estimated = estimate(config, cluster, options.caption_tokens)
    precision = settle(str(config["trainer"].get("precision") or "32-true"), device)
    named = {"device": options.on, "precision": precision}
    warnings = advice(estimated, config, cluster)
    values = page.values(config, estimated, cluster, warnings, named, options.price)
    print(*page.lines(values), sep="\n")
    if options.json is not None:
        write_whole(options.json, json.dumps(values, indent=2) + "\n")
    return 0
