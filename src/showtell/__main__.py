"""`python -m showtell` is the same as `showtell`."""

from showtell.cli import main

if __name__ == "__main__":
    main()
