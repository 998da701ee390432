"""Show that a family of transformers computes something else of packed or padded sequences than of each one alone.

python docs/reproductions/packing.py FAMILY [IMPLEMENTATION [WAY]]

Prints a script that needs nothing but torch and transformers, then runs it: `relative error 0.9` is a leak, 1e-06 is
rounding. Without a WAY, each one that docs/packing has as wrong for this transformers.
"""

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from model.huggingface.families import family_named
from model.huggingface.inputs import WAYS, way_named
from tests.packing.records import recorded, state_of
from tests.packing.reproduction import reproduction, run

parser = argparse.ArgumentParser()
parser.add_argument("family")
parser.add_argument("implementation", nargs="?", default="eager")
parser.add_argument("way", nargs="?")
given = parser.parse_args()
try:
    family = family_named(given.family)
    entry = (recorded("cpu") or {"families": {}})["families"].get(given.family, {})
    found = entry.get("implementations", {}).get(given.implementation, {}).get("ways", {})
    ways = (
        [way_named(given.way)] if given.way else [way for way in WAYS if state_of(found.get(way.name, "")) == "wrong"]
    )
except ValueError as error:
    parser.error(str(error))
if not ways:
    print(
        f"nothing is recorded as wrong of {given.family} with {given.implementation} in transformers "
        f"{version('transformers')}; name a way"
    )
scripts = {way: reproduction(family, given.implementation, way, entry.get("first_position", 0)) for way in ways}
for number, (way, script) in enumerate(scripts.items()):
    if number == 0:
        print(script)
    print(f"{way.name}: relative error {run(script):.2g}")
