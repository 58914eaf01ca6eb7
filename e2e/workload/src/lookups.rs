// SPDX-License-Identifier: Apache-2.0

//! A program bound by memory: lookups of macroscopic cross sections, as Monte Carlo codes of neutron transport do them.
//!
//! The kernel that [XSBench](https://github.com/ANL-CESAR/XSBench) made well known, in its smallest size and written anew
//! (no package has XSBench): a particle's energy is looked up in one grid of all nuclides' energies by binary search; the row
//! found there says where in each nuclide's own grid it lies, and five cross sections of every nuclide of the material are
//! interpolated and added up. Nearly every access misses the caches. Out: what it did, and what the kernel says of its memory.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, Result};

/// XSBench's small problem: nuclides of the fuel and of everything else, energies of each.
const NUCLIDES: usize = 68;
const GRID_POINTS: usize = 11_303;
/// Nuclides of the material that most lookups are for.
const FUEL: usize = 34;
const LOOKUPS: u64 = 1_500_000;

/// Energy and five cross sections.
type Point = [f64; 6];

/// A generator by Marsaglia (xorshift): the same sequence in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Each nuclide's points by energy, and all energies together with the place of each in every nuclide's.
struct Grids {
    nuclides: Vec<Point>,
    energies: Vec<f64>,
    places: Vec<u32>,
}

impl Grids {
    fn new(random: &mut Random) -> Self {
        let mut nuclides: Vec<Point> = Vec::with_capacity(NUCLIDES * GRID_POINTS);
        for _ in 0..NUCLIDES {
            let mut own: Vec<Point> =
                (0..GRID_POINTS).map(|_| std::array::from_fn(|_| random.next())).collect();
            own.sort_by(|a, b| a[0].total_cmp(&b[0]));
            nuclides.append(&mut own);
        }
        let mut energies: Vec<f64> = nuclides.iter().map(|point| point[0]).collect();
        energies.sort_by(f64::total_cmp);
        let mut places = Vec::with_capacity(energies.len() * NUCLIDES);
        let mut at = [0u32; NUCLIDES];
        for energy in &energies {
            for (nuclide, place) in at.iter_mut().enumerate() {
                let point = |place: u32| nuclides[nuclide * GRID_POINTS + place as usize][0];
                while (*place as usize) < GRID_POINTS - 2 && point(*place + 1) <= *energy {
                    *place += 1;
                }
            }
            places.extend_from_slice(&at);
        }
        Self { nuclides, energies, places }
    }

    fn lookup(&self, energy: f64, material: &[usize]) -> [f64; 5] {
        let row = self.energies.partition_point(|known| *known <= energy).saturating_sub(1);
        let mut sums = [0.0; 5];
        for &nuclide in material {
            let low = nuclide * GRID_POINTS + self.places[row * NUCLIDES + nuclide] as usize;
            let (low, high) = (&self.nuclides[low], &self.nuclides[low + 1]);
            let share = (high[0] - energy) / (high[0] - low[0]);
            for (index, sum) in sums.iter_mut().enumerate() {
                *sum += high[index + 1] - share * (high[index + 1] - low[index + 1]);
            }
        }
        sums
    }
}

/// Makes the grids, looks them up, and prints both with what the kernel says of this process.
pub(crate) fn main() -> Result<()> {
    let mut random = Random(0x5eed_1234_5678_9abc);
    let began = Instant::now();
    let grids = Grids::new(&mut random);
    let made = began.elapsed();
    let began = Instant::now();
    let mut sum = 0.0;
    for _ in 0..LOOKUPS {
        let first = (random.next() * (NUCLIDES - FUEL) as f64) as usize;
        let material: [usize; FUEL] = std::array::from_fn(|index| first + index);
        sum += black_box(grids.lookup(random.next(), &material))[0];
    }
    let took = began.elapsed();
    println!(
        "grids: {NUCLIDES} nuclides, {} energies, made in {:.2} s",
        grids.energies.len(),
        made.as_secs_f64()
    );
    println!(
        "lookups: {LOOKUPS} in {:.2} s, {:.0} per second (sum {sum:.3})",
        took.as_secs_f64(),
        LOOKUPS as f64 / took.as_secs_f64()
    );
    let status = std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    for line in status.lines().filter(|line| line.starts_with("VmHWM") || line.starts_with("RssAnon")) {
        println!("{line}");
    }
    // SAFETY: an all-zero rusage is valid, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    println!("minor faults: {}", usage.ru_minflt);
    println!("major faults: {}", usage.ru_majflt);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_energy_is_found_between_its_neighbours_in_every_nuclide() {
        let mut random = Random(1);
        // Two nuclides: energies 0, 1, 2 and 0.5, 1.5, 2.5; cross sections ten times the energy.
        let point = |energy: f64| [energy, energy * 10.0, 0.0, 0.0, 0.0, 1.0];
        let mut grids =
            Grids { nuclides: Vec::new(), energies: vec![0.0, 0.5, 1.0, 1.5, 2.0, 2.5], places: Vec::new() };
        for first in [0.0, 0.5] {
            let mut own = vec![point(first), point(first + 1.0), point(first + 2.0)];
            own.resize(GRID_POINTS, point(9.0));
            grids.nuclides.extend(own);
        }
        for places in [[0, 0], [0, 0], [1, 0], [1, 1], [1, 1], [1, 1]] {
            grids.places.extend(places);
            grids.places.extend([0; NUCLIDES - 2]);
        }
        let sums = grids.lookup(1.25, &[0, 1]);
        assert!((sums[0] - 25.0).abs() < 1e-9 && (sums[4] - 2.0).abs() < 1e-9, "{sums:?}");
        assert!((0.0..1.0).contains(&random.next()));
    }
}
