/* What the layers share. */
#ifndef HDI_NN_NN_H
#define HDI_NN_NN_H

/* The spread of first values where the options do not say. */
#define HDI_DEFAULT_STD 0.02

#endif
