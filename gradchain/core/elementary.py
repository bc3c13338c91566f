"""C of the elementary functions in float32: within 0.53 units in the last place, and in vectors.

A compiler makes no vectors of calls, and a library's function takes one number at a time: a rule's tanh took sixty
times as long as torch's, and is off by two units. These are arithmetic alone. They compute in double and round once at
the end, so a short series does, one constant stands for ln 2, and numbers that a float barely holds are ordinary ones.
They fuse no product with a sum, so every processor gives the same bits. In float64 the functions are the library's.

A helper holds a family, and what its functions share: a kernel that calls two of them has it once.
"""

from __future__ import annotations

_LN2 = "0.6931471805599453"

# x = k ln 2 + r, so e^x = 2^k e^r. A sum with 1.5 * 2^52 is rounded to an integer, which is then its lowest bits.
EXPONENTIALS = f"""\
#define EXP exp
#define EXPM1 expm1
#define TANH tanh
static inline double TWO_TO(double shifted) {{
  union {{ double f; uint64_t i; }} u; u.f = shifted; u.i = (u.i << 52) + 0x3ff0000000000000u; return u.f;
}}
static inline double EXPM1_NEAR(double r) {{
  return r * (1 + r * (1 / 2. + r * (1 / 6. + r * (1 / 24. + r * (1 / 120.
         + r * (1 / 720. + r * (1 / 5040. + r / 40320.)))))));
}}
static inline double EXPM1_OF(double x) {{
  double shifted = x * 1.4426950408889634 + 0x1.8p52, s = TWO_TO(shifted);
  return (s - 1) + s * EXPM1_NEAR(x - (shifted - 0x1.8p52) * {_LN2});
}}
static inline float EXPf(float v) {{
  double x = v < -110 ? -110 : v > 100 ? 100 : v;
  double shifted = x * 1.4426950408889634 + 0x1.8p52, s = TWO_TO(shifted);
  return (float)(s + s * EXPM1_NEAR(x - (shifted - 0x1.8p52) * {_LN2}));
}}
static inline float EXPM1f(float v) {{
  double x = v < -110 ? -110 : v > 100 ? 100 : v;
  return v == 0 ? v : (float)EXPM1_OF(x);
}}
static inline float TANHf(float v) {{
  double x = v < -20 ? -20 : v > 20 ? 20 : v, e = EXPM1_OF(2 * x);
  return v == 0 ? v : (float)(e / (e + 2));
}}"""

# u = 2^k m with m from sqrt(1/2) to sqrt(2), and log m = 2 atanh((m - 1) / (m + 1)). `near` is u - 1, not rounded.
LOGARITHMS = f"""\
#define LOG log
#define LOG1P log1p
static inline double LOG_OF(double u, double near) {{
  union {{ double f; uint64_t i; }} m, k;
  m.f = u;
  uint64_t exponent = (m.i - 0x3fe6a09e667f3bcdu + 0x3ff0000000000000u) >> 52;
  m.i -= (exponent - 1023) << 52;
  k.i = exponent | 0x4330000000000000u;
  double twos = k.f - (0x1p52 + 1023), f = twos == 0 ? near : m.f - 1, s = f / (2 + f), z = s * s;
  return twos * {_LN2} + 2 * s * (1 + z * (1 / 3. + z * (1 / 5. + z * (1 / 7. + z * (1 / 9. + z / 11.)))));
}}
static inline float LOGf(float v) {{
  double x = v;
  float inside = (float)LOG_OF(x, x - 1), outside = v < 0 ? NAN : v == 0 ? -INFINITY : v;
  return v > 0 && v < INFINITY ? inside : outside;
}}
static inline float LOG1Pf(float v) {{
  double x = v;
  float inside = (float)LOG_OF(1 + x, x), outside = v < -1 ? NAN : v == -1 ? -INFINITY : v;
  return v > -1 && v < INFINITY && v != 0 ? inside : outside;
}}"""

# 2^(b log2 |a|), by polynomials of least relative error: 4e-12 of log2, 2e-9 of 2^r for r from -1/2 to 1/2. As 150 is
# the most that b log2 |a| comes to, a power is within 2.5e-9 and the rounding to float. The rest is C's table of what
# zeros, infinities, NaNs and negative numbers give; b is mostly one number for all: what is of b alone is made once.
POWERS = """\
#define POW pow
static inline double LOG2_OF(double x) {
  union { double f; uint64_t i; } m, k;
  m.f = x;
  uint64_t exponent = (m.i - 0x3fe6a09e667f3bcdu + 0x3ff0000000000000u) >> 52;
  m.i -= (exponent - 1023) << 52;
  k.i = exponent | 0x4330000000000000u;
  double s = (m.f - 1) / (m.f + 1), z = s * s, w = z * z;
  double even = 2.8853900817900806 + w * (0.5770835833178346 + w * 0.34072804337974355);
  return (k.f - (0x1p52 + 1023)) + s * (even + z * (0.9617966733496842 + w * 0.4116728246263175));
}
static inline double EXP2_OF(double t) {
  double shifted = t + 0x1.8p52, r = t - (shifted - 0x1.8p52), q = r * r;
  union { double f; uint64_t i; } u;
  u.f = shifted;
  u.i = (u.i << 52) + 0x3ff0000000000000u;
  double low = (1.0000000005541716 + r * 0.6931472057374306) + q * (0.24022646890612068 + r * 0.05550328776611243);
  return u.f * (low + q * q * ((0.009618488958221889 + r * 0.0013399931362968265) + q * 0.00015345812047832443));
}
static inline float POWf(float a, float b) {
  double y = b, t = y * LOG2_OF(fabs((double)a));
  int whole = floor(y) == y, even = floor(y * 0.5) * 2 == y;
  float x = fabsf(a), r = (float)EXP2_OF(t < -160 ? -160 : t > 160 ? 160 : t);
  r = x == 0 ? (b > 0 ? 0 : INFINITY) : r;
  r = x < INFINITY ? r : x == x ? (b > 0 ? INFINITY : 0) : x;
  r = x == 1 ? 1 : r;
  r = a < 0 && x < INFINITY && !whole ? NAN : r;
  r = whole && !even ? copysignf(r, a) : r;
  return a == 1 || b == 0 ? 1 : b == b ? r : b;
}"""

# Of the smaller magnitude over the larger; past tan(pi / 8) it is pi / 4 and that of (small - big) / (small + big).
ANGLES = """\
#define ATAN2 atan2
static inline float ATAN2f(float a, float b) {
  double y = fabs((double)a), x = fabs((double)b), big = y > x ? y : x, small = y > x ? x : y;
  small = big < INFINITY ? small : small < INFINITY ? 0 : 1;
  big = big > 0 && big < INFINITY ? big : 1;
  int past = small > big * 0.41421356237309503;
  double t = (past ? small - big : small) / (past ? small + big : big), z = t * t;
  double r = t * (1 - z * (1 / 3. - z * (1 / 5. - z * (1 / 7. - z * (1 / 9. - z * (1 / 11. - z * (1 / 13.
             - z * (1 / 15. - z * (1 / 17. - z * (1 / 19. - z / 21.))))))))));
  r = r + (past ? 0.7853981633974483 : 0);
  r = y > x ? 1.5707963267948966 - r : r;
  r = copysign(1, (double)b) < 0 ? 3.141592653589793 - r : r;
  return a != a || b != b ? a + b : (float)copysign(r, (double)a);
}"""
