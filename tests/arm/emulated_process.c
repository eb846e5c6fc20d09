/* Runs kernels for 64-bit Arm inside an emulator, on request of `tests/helpers/emulator.py`.
 *
 *   emulated_process MEMORY SIZE ADDRESS    maps the file MEMORY, shared with Python, at ADDRESS
 *
 * Then, a line each, answered by a line:
 *
 *   code PATH SIZE ADDRESS                  maps an image of linked kernels
 *   call FUNCTION TABLE PARAMS BEGIN END SCRATCH
 *
 * Numbers are hexadecimal. The first answer tells the addresses of the C library's functions that
 * compiled code may call. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef void (*kernel)(void *, void *, int64_t, int64_t, void *);

static void map(const char *path, uint64_t size, uint64_t address, int protection, int kind) {
    int file = open(path, O_RDWR);
    void *wanted = (void *)(uintptr_t)address;
    if (file < 0 || mmap(wanted, size, protection, kind | MAP_FIXED, file, 0) != wanted) {
        printf("failed to map %s\n", path);
        exit(1);
    }
}

int main(int count, char **arguments) {
    static char line[8192], path[4096];
    unsigned long long size, address, a, b, begin, end, scratch;
    if (count != 4) return 2;
    map(arguments[1], strtoull(arguments[2], NULL, 16), strtoull(arguments[3], NULL, 16),
        PROT_READ | PROT_WRITE, MAP_SHARED);
    printf("memcpy=0x%llx memmove=0x%llx memset=0x%llx\n", (unsigned long long)(uintptr_t)memcpy,
           (unsigned long long)(uintptr_t)memmove, (unsigned long long)(uintptr_t)memset);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "code %4095s %llx %llx", path, &size, &address) == 3) {
            map(path, size, address, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE);
            __builtin___clear_cache((char *)(uintptr_t)address, (char *)(uintptr_t)(address + size));
        } else if (sscanf(line, "call %llx %llx %llx %llx %llx %llx", &address, &a, &b, &begin,
                          &end, &scratch) == 6) {
            ((kernel)(uintptr_t)address)((void *)(uintptr_t)a, (void *)(uintptr_t)b,
                                         (int64_t)begin, (int64_t)end, (void *)(uintptr_t)scratch);
        } else {
            return 2;
        }
        puts("done");
        fflush(stdout);
    }
    return 0;
}
