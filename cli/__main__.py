"""`python -m mcodec.cli`."""

from mcodec.cli.main import main

if __name__ == "__main__":
    main()
