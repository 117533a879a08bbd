#ifndef BERTH_STAGE_ONE_H
#define BERTH_STAGE_ONE_H

/*
 * /init of the initramfs: from the kernel's first program to the image's init. Either hands over PID 1 or switches
 * the machine off with the reason on the console and on the control channel; every wait has a limit.
 */
_Noreturn void stage_one_run(void);

#endif
