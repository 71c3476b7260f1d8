"""`edged` and `python -m edged`."""

from edged.cli.main import main

if __name__ == "__main__":
    main()
