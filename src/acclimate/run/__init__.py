"""One recipe carried out: prepare, measure, train, measure again, write."""
