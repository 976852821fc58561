"""`python -m dagman`: the same as the command `dagman`."""

from dagman.cli.application import main

if __name__ == "__main__":
    main()
