#ifndef BERTH_MODULES_H
#define BERTH_MODULES_H

/*
 * Loads the modules named in directory/list, one file name a line, in that order; parameters may follow the name.
 * One that fails is reported and passed over: whether the machine can do without it shows at the next step.
 * A missing list is a kernel that has everything built in.
 */
void modules_load(const char *directory);

#endif
