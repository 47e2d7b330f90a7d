"""Neural collapse: metrics of features and classifier, closed forms, mixup, a recorder."""
