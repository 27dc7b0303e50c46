"""The service's entry point: `python trainer_service.py --help`."""

from trainer.cli import main

if __name__ == "__main__":
    main()
