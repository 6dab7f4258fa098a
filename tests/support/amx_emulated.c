/* amx_emulated.c: what a test asks before it runs a kernel, where AMX is emulated (amx_emulated.h): AMX alone
 * is there. The linker sends calls of moei_isa_supported here (--wrap). The kernels' other instructions are
 * AVX-512 BF16. Source: ld, option --wrap.
 */
#include <stdio.h>
#include <stdlib.h>

#include "kernel/kernel.h"

bool __real_moei_isa_supported(moei_isa isa);
bool __wrap_moei_isa_supported(moei_isa isa);

bool __wrap_moei_isa_supported(moei_isa isa) {
    if (!__real_moei_isa_supported(MOEI_ISA_AVX512BF16)) {
        printf("no AVX-512 BF16 on this machine\n");
        exit(77);
    }
    return isa == MOEI_ISA_AMX;
}
