"""``python -m stepwatch.cli``: the same as ``stepwatch``, for launchers such as torchrun."""

from stepwatch.cli.main import main

if __name__ == "__main__":
    main(prog_name="stepwatch")
