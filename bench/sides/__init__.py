"""Who works: one file for us and one for each peer. A function of this kind takes the material's folder and its options."""
