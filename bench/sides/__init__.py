"""Who works: files of ours and of each peer, by work. A function of this kind takes the material's folder and its options."""
