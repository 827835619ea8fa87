"""Recompute, check or show: see :mod:`tests.oracle.families`."""

import argparse

from tests.oracle import families


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle.families")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="recompute and store")
    action.add_argument("--check", action="store_true", help="recompute and compare")
    action.add_argument("--table", action="store_true", help="our differences, case by case")
    parser.add_argument("family", nargs="*", choices=[*families.FAMILIES, []], default=[])
    arguments = parser.parse_args()
    for family in arguments.family or families.FAMILIES:
        if arguments.write:
            families.write(family)
        elif arguments.check:
            assert families.stored(family).keys() == families.table(family).cases.keys(), family
            for case in families.table(family).cases:
                name = f"{family}/{case}"
                families.compare(name, families.recompute(name), families.load(name))
        else:
            from tests.models import family_cases

            for case in families.table(family).cases:
                print(family_cases.row(f"{family}/{case}"), flush=True)


if __name__ == "__main__":
    main()
