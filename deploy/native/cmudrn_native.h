/* CMUDRN on a CPU in machine code of our own: the C interface, all that Python sees.

   A network holds packed weights and may serve many sessions. A session holds the memory that a size needs; use it
   from one thread at a time. Nothing here keeps a thread, a lock or a global between calls, so a process may fork. */
#ifndef CMUDRN_NATIVE_H
#define CMUDRN_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define CMUDRN_API __declspec(dllexport)
#else
#define CMUDRN_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { CMUDRN_ABI = 1 };       /* raised when anything below changes */
enum { CMUDRN_WEIGHTS = 24825 };

enum cmudrn_pixel { CMUDRN_UINT8 = 0, CMUDRN_FLOAT32 = 1 }; /* 0..255, or [0, 1] */
enum cmudrn_output { CMUDRN_FUSED = 0, CMUDRN_RAIN = 1, CMUDRN_SNOW = 2 };
enum cmudrn_status {
    CMUDRN_OK = 0,
    CMUDRN_NO_MEMORY = 1, /* nothing was written; the session serves smaller images still */
    CMUDRN_BAD_ARGUMENT = 2
};

typedef struct {
    int32_t inter_loops; /* stages, 1 to 32 */
    int32_t intra_loops; /* 1 to 32 */
    /* alpha of the cross-stitch at each point; 1 where there is none */
    float stem, block1, block2, body;
} cmudrn_config;

typedef struct cmudrn_network cmudrn_network;
typedef struct cmudrn_session cmudrn_session;

CMUDRN_API int cmudrn_abi(void); /* CMUDRN_ABI of the built library */

/* Names of the instruction sets that this build holds and this processor has, best first, parted by commas:
   "avx512,avx2,base,direct". Those that round more than float32 does (avx512bf16) are not among them. */
CMUDRN_API const char *cmudrn_isas(void);
/* 1 where this build holds `isa` and the processor has it, avx512bf16 too; else 0. */
CMUDRN_API int cmudrn_has_isa(const char *isa);

/* weights: CMUDRN_WEIGHTS floats; of the rain branch, then the snow branch: conv_in, block1.conv1, block1.conv2,
   block2.conv1, block2.conv2, conv_out; then the fusion's conv1, conv2, conv3. Each as [out, in, 3, 3], then its
   bias [out]. They are copied. NULL for an isa that cmudrn_has_isa denies, a wrong config, or want of memory. */
CMUDRN_API cmudrn_network *cmudrn_network_new(const float *weights, size_t count, const cmudrn_config *config,
                                              const char *isa);
CMUDRN_API void cmudrn_network_free(cmudrn_network *network); /* after its sessions; NULL is fine */

/* threads: at most so many work within a call, 1 to 256; they end with it. NULL as above. */
CMUDRN_API cmudrn_session *cmudrn_session_new(const cmudrn_network *network, int threads);
CMUDRN_API void cmudrn_session_free(cmudrn_session *session); /* NULL is fine */

/* Bytes that a batch of this size needs, and that the session keeps from the first call of the largest size on. 0 for
   what cmudrn_restore calls a bad argument; UINT64_MAX for more work than can be counted, which it has no memory for. */
CMUDRN_API uint64_t cmudrn_session_bytes(const cmudrn_session *session, int batch, int height, int width);

/* in, out: [batch, height, width, 3], contiguous, aligned, of `pixel`; they may not overlap. out is clamped to [0, 1];
   uint8 is rounded half up. Finite input only. The same bytes whatever the number of threads. */
CMUDRN_API int cmudrn_restore(cmudrn_session *session, const void *in, void *out, int batch, int height, int width,
                              int pixel, int output);

#ifdef __cplusplus
}
#endif
#endif
