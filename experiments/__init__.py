"""The studies: data sets, models, methods, training and its records. They import ``rad``, never the other way."""
