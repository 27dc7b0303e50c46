"""`python -m trainer.cli` is the same as `yolo-trainer`."""

from trainer.cli import main

if __name__ == "__main__":
    main()
