/* A boot sector that calls one kernel: no operating system, 64 bits, tiles permitted.
 *
 * The image at IMAGE begins with a header of eight quadwords: the function, its five arguments, and
 * how many bytes of the image are to be written to port 0xE9 when it has returned. */
        .set IMAGE, 0x1000000
        .set TABLES, 0x1000
        .set STACK, 0x80000

        .code16
        .globl start
start:  cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        inb     $0x92, %al              /* all address lines */
        orb     $2, %al
        outb    %al, $0x92
        movl    $TABLES, %edi           /* one page of 1 GiB */
        movl    $0x800, %ecx
        xorl    %eax, %eax
        cld
        rep stosl %eax, %es:(%di)
        movl    $(TABLES + 0x1003), TABLES
        movl    $0x83, TABLES + 0x1000
        lgdtl   table
        movl    %cr4, %eax              /* PAE, OSFXSR, OSXMMEXCPT, OSXSAVE */
        orl     $0x40620, %eax
        movl    %eax, %cr4
        movl    $TABLES, %eax
        movl    %eax, %cr3
        movl    $0xC0000080, %ecx       /* EFER.LME */
        rdmsr
        orl     $0x100, %eax
        wrmsr
        movl    %cr0, %eax              /* PG, PE, MP; not EM, TS */
        andl    $0xFFFFFFF3, %eax
        orl     $0x80000003, %eax
        movl    %eax, %cr0
        ljmpl   $8, $long

        .code64
long:   movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $STACK, %esp
        xorl    %ecx, %ecx              /* x87, SSE, AVX, AVX-512, tiles */
        xorl    %edx, %edx
        movl    $0x600E7, %eax
        xsetbv
        movl    $IMAGE, %ebx
        movq    8(%rbx), %rdi
        movq    16(%rbx), %rsi
        movq    24(%rbx), %rdx
        movq    32(%rbx), %rcx
        movq    40(%rbx), %r8
        call    *(%rbx)
        movl    $IMAGE, %esi
        movq    IMAGE + 48, %rcx
        movw    $0xE9, %dx
        rep outsb
        movl    $farewell, %esi         /* Bochs ends when it reads this */
        movl    $8, %ecx
        movw    $0x8900, %dx
        rep outsb
        hlt

        .globl memset                   /* LLVM calls it */
memset: movq    %rdi, %r8
        movq    %rdx, %rcx
        movl    %esi, %eax
        rep stosb
        movq    %r8, %rax
        ret

farewell: .ascii "Shutdown"
        .balign 8
gdt:    .quad   0, 0x00209A0000000000, 0x0000920000000000
table:  .word   . - gdt - 1
        .long   gdt

        .org    510
        .word   0xAA55
