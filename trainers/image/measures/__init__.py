"""What frozen networks make of reconstructions beside their originals, image by image or as sets."""
