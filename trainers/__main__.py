"""Train, measure and use tokenizers.

python -m trainers fit|validate|test|predict --config FILE [--config OVERLAY] --data.root FOLDER
python -m trainers export RUN --to FOLDER [--checkpoint last|best|FILE]
python -m trainers table RUN [RUN ...]
"""

import signal

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of what is just being imported
    from trainers.run.cli import main

    main()
