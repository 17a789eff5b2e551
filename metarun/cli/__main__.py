"""`python -m metarun.cli`: the same as `python -m metarun`."""

from metarun.cli.main import main

if __name__ == "__main__":
    main()
