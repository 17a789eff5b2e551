"""`python -m metarun`, which is how torchrun starts it: torchrun --nproc-per-node 2 -m metarun ..."""

from metarun.cli.main import main

if __name__ == "__main__":
    main()
