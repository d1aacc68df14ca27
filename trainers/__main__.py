"""`python -m trainers fit|validate|test|predict --config FILE [--config OVERLAY] --data.root FOLDER`."""

from trainers.run.cli import main

if __name__ == "__main__":
    main()
