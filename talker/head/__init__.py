"""Head geometry: the camera convention, morphable models and fitting."""
