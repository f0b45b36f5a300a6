"""acclimate beside its peers on one machine, in one run: `make bench`, or `make bench WORK=sft-lora`."""
