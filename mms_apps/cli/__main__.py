"""`python -m mms_apps.cli`, for launchers of several processes."""

from mms_apps.cli.command import main

if __name__ == "__main__":
    main()
