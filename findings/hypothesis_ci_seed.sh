#!/usr/bin/env bash
# Versions: hypothesis 6.170.15, pytest 9.2.0.
#
# Behaviour: where CI is set (to anything), Hypothesis loads its own profile "ci" when it is imported. A profile that a
# conftest registers afterwards takes every field that it leaves out from there, so it is derandomised and has no
# database. --hypothesis-seed then changes nothing, and no line says so.
#
# Seen:
#     CI=unset, --hypothesis-seed=1: option [0, 3206, 47, 999999, 231472]; derandomize=False, a database
#     CI=unset, --hypothesis-seed=2: option [0, 142, 8502, 1891, 4867]; derandomize=False, a database
#     CI=true, --hypothesis-seed=1: option [0, 352, 110620, 999999, 67308]; derandomize=True, no database
#     CI=true, --hypothesis-seed=2: option [0, 352, 110620, 999999, 67308]; derandomize=True, no database
# and the decorator draws [0, 3206, 47, 999999, 231472] for seed 1, [0, 142, 8502, 1891, 4867] for 2, with CI or not.
#
# Why it surprises: that CI changes the defaults is documented, but here the user named and loaded a profile and asked
# for a seed. The decorator @seed wins over derandomize, as its documentation says; the option of that name loses to it.
# A nightly run with a new seed each night draws the same examples every night. A profile that states derandomize and
# database is safe.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -qq hypothesis==6.170.15 pytest==9.2.0

cat > conftest.py <<'PYTHON'
from hypothesis import settings

settings.register_profile("nightly", max_examples=5)
settings.load_profile("nightly")
PYTHON

cat > test_draws.py <<'PYTHON'
import os

from hypothesis import given, seed, settings
from hypothesis import strategies as st

numbers = st.integers(0, 10**6)
by_option, by_decorator = [], []


@given(numbers)
def test_seed_of_the_option(number):
    by_option.append(number)


@seed(int(os.environ["SEED"]))
@given(numbers)
def test_seed_of_the_decorator(number):
    by_decorator.append(number)


def test_write_what_was_drawn():
    database = "no database" if settings.default.database is None else "a database"
    with open(os.environ["SEEN"], "w") as seen:
        print("option", by_option, file=seen)
        print("decorator", by_decorator, file=seen)
        print(f"derandomize={settings.default.derandomize}, {database}", file=seen)
PYTHON

# A clean environment: other variables tell Hypothesis of CI too, and options of pytest may be set in one.
for seed in 1 2; do
    for ci in unset true; do
        variables=(PATH="$PATH" SEED=$seed SEEN="$ci.$seed")
        [ $ci = unset ] || variables+=(CI=$ci)
        env -i "${variables[@]}" venv/bin/python -m pytest -q --hypothesis-seed=$seed > log || { cat log; exit 1; }
        echo "CI=$ci, --hypothesis-seed=$seed: $(paste -s -d ';' "$ci.$seed")"
    done
done

same() { cmp -s <(grep "^$1" "$2") <(grep "^$1" "$3"); }
differ() { ! same "$@"; }
check() { "${@:2}" || { echo "changed: no longer true that $1"; exit 1; }; }
check "the option's seed counts without CI" differ option unset.1 unset.2
check "the option's seed is ignored under CI" same option true.1 true.2
check "the decorator's seed counts under CI" differ decorator true.1 true.2
check "a profile registered under CI is derandomised" grep -q "derandomize=True, no database" true.1
check "a profile registered without CI is random" grep -q "derandomize=False, a database" unset.1
echo "as described"
