"""`python -m trainers fit|validate|test|predict --config configs/image/....yaml [--config overlay.yaml] --data.root DIR`."""

from trainers.cli import main

if __name__ == "__main__":
    main()
