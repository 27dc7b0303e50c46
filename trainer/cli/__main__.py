"""The entry point of `python -m trainer.cli`, an alternative to `yolo-trainer`."""

from trainer.cli import main

if __name__ == "__main__":
    main()
