"""`python -m vqkit encode | decode | info | rate`: picture and sound files to files of indices and back."""
