"""Head geometry: the one camera convention, morphable models, fitting."""
